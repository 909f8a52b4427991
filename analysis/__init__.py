from analysis.tables import open_store as open_store
