# SPDX-License-Identifier: Apache-2.0
"""Configuration: every option, and the source driver that Glance loads."""
