"""What travels between server and clients: records and bytes."""
