"""A host as post-copy sees it: what ``vmemu doctor`` finds and ``vmemu check`` judges by."""
