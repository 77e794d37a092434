"""A simulated fleet of devices that behaves like Capgo's plugins: the demo, and the data of tests.

`scenario` says what happens, `fleet` lets it happen and gives what devices post, `truth` counts what really happened;
`live` posts to an exporter in real time, `backfill` runs one on a virtual clock over weeks within minutes.
"""
