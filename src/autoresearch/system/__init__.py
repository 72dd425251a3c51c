"""The operating system: files, clock, processes, git, sandbox, hardware."""
