"""How often the alerts are wrong, and how soon they are right: measured with the real rules and the real promtool."""
