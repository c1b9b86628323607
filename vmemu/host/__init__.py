"""Facts of this host that post-copy depends on, as the kernel tells them."""
