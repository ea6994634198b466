"""One file per training recipe; installed as `gluon_resnest.recipes`."""
