"""The gRPC border: thin servicers, one interceptor, health, reflection and the server's options."""
