# SPDX-License-Identifier: Apache-2.0
"""The agent: the one process of a node that talks to other nodes.

``agent`` runs it; ``server`` answers other nodes, ``local`` answers this
node's glance-api; ``client`` asks other nodes; ``sync`` exchanges records,
``transfer`` fetches chunks, ``keeper`` follows placement and reports what is
held; ``identity`` makes and checks certificates.
"""
