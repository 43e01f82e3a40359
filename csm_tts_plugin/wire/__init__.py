"""The messages between client and server, typed and read strictly."""
