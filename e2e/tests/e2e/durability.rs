//! What was acknowledged survives SIGKILL at any moment, and what the dead one ran does not.
