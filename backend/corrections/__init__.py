"""What annotators accepted and corrected, from Label Studio into the store."""
