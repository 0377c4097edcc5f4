//! RVS.
