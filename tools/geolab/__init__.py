# SPDX-License-Identifier: Apache-2.0
"""The lab: real sites on one machine, for people and for tests.

``cli`` is the command, ``lab`` what it does, ``layout`` a site's files,
``processes`` starting and ending, ``links_relay`` and ``links_wan`` the links
between sites, ``tokens`` users without Keystone.
"""
