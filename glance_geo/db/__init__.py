# SPDX-License-Identifier: Apache-2.0
"""Glance's data API over metadata engines.

``api`` is what Glance calls; ``images``, ``members``, ``tasks``, ``metadefs``
and ``cache`` implement it; ``recordstore`` reads and writes records through an
engine; ``queries`` plans lists; ``engines`` holds one module per product.
"""
