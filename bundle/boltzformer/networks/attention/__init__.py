"""Boltzmann attention: which patches a query keeps (`rules`), and attention over them (`plain` and faster forms).

Read `rules`, then `plain`: that is the idea. `dense`, `gathered` and `kernel` compute the same function faster; `layer`
chooses among them.
"""
