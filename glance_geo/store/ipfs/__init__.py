# SPDX-License-Identifier: Apache-2.0
"""Images in IPFS.

- ``driver``: the glance_store driver ``ipfs``; ``writing`` and ``reading``
- ``references``: on whose behalf a node keeps a file, in the node itself
- ``chunks``: the geo store's chunks as blocks; ``publication`` is how
- ``node``: what is asked of a node; ``rpc``, the one module that knows its
  client
"""
