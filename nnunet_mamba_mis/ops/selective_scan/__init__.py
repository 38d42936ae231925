"""The selective scan: one signature and several backends."""
