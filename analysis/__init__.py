from analysis.store import open_store as open_store
