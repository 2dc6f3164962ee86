"""The database of annotators' work: schema, transactions, migrations."""
