"""The object a user holds: questions and documents in, cited answers out."""
