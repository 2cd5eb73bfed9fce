# SPDX-License-Identifier: Apache-2.0
"""The glance_store drivers and the chunk store under them.

Writing an image: ``driver`` -> ``upload`` -> ``chunkstore`` -> ``packs`` and
``index``. Reading: ``driver`` -> ``download`` -> ``chunkstore``. Freeing
space: ``collect``.
"""
