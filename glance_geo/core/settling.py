# SPDX-License-Identifier: Apache-2.0
"""Which references to bits metadata has given up. A pure function."""

from collections.abc import Collection, Iterable
from typing import TypeVar

COPY = 'copy'
"""The nonce of a reference that keeps a copy fetched from elsewhere."""

Content = TypeVar('Content')


def given_up(kept: Iterable[tuple[Content, str]],
             listed: Collection[tuple[Content, str]],
             asked: Collection[tuple[Content, str]],
             deleted: bool) -> list[tuple[Content, str]]:
    """Return those of an image's references that go.

    That a record does not list a location is not enough: it may be about to,
    or may have been restored from before it did. A reference goes when the
    image is deleted, or when its own deletion was asked for and the record
    does not list it.

    :param kept: (manifest or CID, nonce) of the references
    :param listed: of the locations in the image's record; a copy stays while
        any location has its content
    :param asked: of those whose deletion was asked for
    :param deleted: every image that the id stands for is deleted for good
    """
    contents = {content for content, _ in listed}
    unwanted = {content for content, _ in asked}
    return [(content, nonce) for content, nonce in kept
            if (content, nonce) not in listed
            and not (nonce == COPY and content in contents)
            and (deleted or (content, nonce) in asked
                 or (nonce == COPY and content in unwanted))]
