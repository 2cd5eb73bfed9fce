# SPDX-License-Identifier: Apache-2.0
"""Records, merging, manifests, placement: pure functions and words.

Nothing here reads a clock, a network, a file or an option.
"""
