"""`dlm bench --tune`: a device's launch table, chosen by measurement."""
