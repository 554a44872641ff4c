//! Bad input of every kind: a clear error, and the service that ran before still serves.
