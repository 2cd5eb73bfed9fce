# SPDX-License-Identifier: Apache-2.0
"""The glance_store drivers and the chunk store under them.

Writing an image: ``driver`` -> ``upload`` -> ``session`` -> ``packs`` and
``index``, ``references``. Reading: ``driver`` -> ``download`` -> ``view``.
Freeing space: ``collect``, ``compact``. After damage: ``check``, ``rebuild``.
``chunkstore`` is the store as others see it, ``folder`` and ``schema`` what
it looks like on the disk.
"""
