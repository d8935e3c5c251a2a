package kernel

// TableNames reads the names of routing tables, as ip-route(8) knows them.
func TableNames() (map[string]uint32, error) { return tableNames(rtTables) }
