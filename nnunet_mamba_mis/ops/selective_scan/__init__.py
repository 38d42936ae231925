"""The selective scan: one signature, several backends."""
