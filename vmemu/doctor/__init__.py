"""The examination of a host: what ``vmemu doctor`` finds and ``vmemu check`` judges by."""
