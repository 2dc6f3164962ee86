"""The service around semsam_model: Label Studio on one side, masks on the other."""
