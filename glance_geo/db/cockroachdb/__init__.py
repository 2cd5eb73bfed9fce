# SPDX-License-Identifier: Apache-2.0
"""oslo.db on CockroachDB, for Glance and for any other OpenStack service.

``plugin`` is where SQLAlchemy finds us; ``filters`` turns what the server says
into oslo.db's errors; ``connection`` saves round trips and makes commits
certain, with ``commits``; ``calls`` repeats Glance's data API safely;
``schema`` and ``ddl`` bring up the tables; ``locality`` places them.
"""
