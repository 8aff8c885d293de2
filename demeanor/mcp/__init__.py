"""Tools of MCP servers: which servers a stack declares, which of their tools a person approved, and live connections."""
