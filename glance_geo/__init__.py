# SPDX-License-Identifier: Apache-2.0
"""Geo-distributed image service behind an unmodified OpenStack Glance."""
