"""Recording what a command touches, with a tool that is installed, straight into a native trace."""
