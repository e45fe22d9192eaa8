"""A person's filter on a teacher's labels: what to look at first, the page, rules, agreement, and the result, D_seed."""
