"""The journal: one SQLite file that holds everything a restart needs.

Points that InfluxDB has not got yet, the values of the counters, the remembered event ids, and how much of each series
may be shown. One transaction stores all that belongs to one group of events.
"""
