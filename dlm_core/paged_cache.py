"""Keys and values in pages that requests take, share, give back and leave for host memory.

A `PagePool` owns the memory, a `Context` is one request's list of pages, and a `PagedKVCache` shows
the contexts of a batch to a forward, as `KVCache` does for contiguous ones.
"""

import hashlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from dlm_kernels.validate import check_int

from .cache import views_of
from .config import ModelConfig
from .kv_scales import KVScales, scales_of_cache


class OutOfPages(RuntimeError):
    """The pool has fewer free pages than were asked for; nothing was taken."""


class PagePool:
    """A fixed number of pages of `page_size` tokens each, for all layers, counted by users.

    keys, values: per layer a tensor [pages, page_size, kv_heads, head_dim]; what a page holds has
        no meaning until it is written.
    key_scales, value_scales: as those of a `KVCache`.
    """

    def __init__(
        self,
        config: ModelConfig,
        pages: int,
        page_size: int = 64,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        scales: KVScales | None = None,
    ) -> None:
        """scales: of a cache in float8_e4m3fn; default 1."""
        check_int("pages", pages, 1, 2**31 - 1)
        check_int("page_size", page_size, 16, 65536)
        if page_size & (page_size - 1):
            raise ValueError(f"page_size is {page_size}; it must be a power of two")
        self.key_scales, self.value_scales = scales_of_cache(scales, config, device, dtype)
        shape = (pages, page_size, config.num_key_value_heads, config.head_dim)
        try:
            self.keys, self.values = (
                [
                    torch.empty(shape, device=device, dtype=dtype)
                    for _ in range(config.num_hidden_layers)
                ]
                for _ in range(2)
            )
        except RuntimeError as error:  # torch has no narrower class on a CPU
            size = 2 * config.num_hidden_layers * torch.Size(shape).numel() * dtype.itemsize
            raise MemoryError(
                f"pages is {pages}; a cache of that many pages of {page_size} tokens takes"
                f" {size / 2**30:.3g} GiB, and {device} does not have them: {error}"
            ) from None
        self.page_size = page_size
        self.device = torch.device(device)
        self._users = [0] * pages
        self._free = list(range(pages - 1, -1, -1))
        self._page_of: dict[bytes, int] = {}  # published pages by what they and all before hold
        self._name_of: dict[int, bytes] = {}

    @property
    def n_pages(self) -> int:
        return len(self._users)

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def dtype(self) -> torch.dtype:
        return self.keys[0].dtype

    def pages_for(self, tokens: int) -> int:
        """Pages that `tokens` tokens take."""
        return -(-tokens // self.page_size)

    def users(self, page: int) -> int:
        """Contexts that hold `page`."""
        return self._users[page]

    def take(self, n: int) -> list[int]:
        """`n` free pages, each with one user; OutOfPages if there are fewer."""
        if n > self.n_free:
            raise OutOfPages(f"{n} pages are wanted and {self.n_free} of {self.n_pages} are free")
        pages = [self._free.pop() for _ in range(n)]
        for page in pages:
            self._users[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """Count one more user of each page."""
        for page in pages:
            self._users[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """Count one user less of each page; a page without users is free and forgotten."""
        for page in pages:
            self._users[page] -= 1
            if self._users[page] == 0:
                self._free.append(page)
                self._page_of.pop(self._name_of.pop(page, b""), None)

    def publish(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        """Let later requests that begin with `tokens` share the whole ones of their `pages`."""
        for name, page in zip(self._names(tokens), pages, strict=False):
            if name not in self._page_of and page not in self._name_of:
                self._page_of[name], self._name_of[page] = page, name

    def published(self, tokens: Sequence[int]) -> list[int]:
        """The published pages that hold the longest beginning of `tokens`, whole pages only."""
        pages = (self._page_of.get(name) for name in self._names(tokens))
        return list(itertools.takewhile(lambda page: page is not None, pages))

    def _names(self, tokens: Sequence[int]):
        """For each whole page of `tokens` a digest of everything up to the page's end."""
        digest = hashlib.sha256()
        for end in range(self.page_size, len(tokens) + 1, self.page_size):
            digest.update(",".join(map(str, tokens[end - self.page_size : end])).encode() + b";")
            yield digest.digest()


class Context:
    """What one request has committed to: pages in order, and how many tokens they hold."""

    def __init__(self, pool: PagePool, prefix: Sequence[int] = ()) -> None:
        """Empty, or holding the published pages of the longest beginning of `prefix` ids."""
        self.pool = pool
        self.pages = pool.published(prefix)
        self.length = len(self.pages) * pool.page_size
        pool.share(self.pages)
        self._on_host: list[Tensor] | None = None

    @property
    def is_swapped_out(self) -> bool:
        return self._on_host is not None

    def pages_to_reserve(self, tokens: int) -> int:
        """Pages that `reserve` would take from the pool."""
        missing = self.pool.pages_for(self.length + tokens) - len(self.pages)
        return max(0, missing) + len(self._shared_ahead(tokens))

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more, in pages that nobody else reads.

        A shared page that would be written is copied first. OutOfPages if there is no room; nothing
        has changed then.
        """
        shared = self._shared_ahead(tokens)
        fresh = self.pool.take(self.pages_to_reserve(tokens))
        for i in shared:
            page = fresh.pop()
            for tensor in (*self.pool.keys, *self.pool.values):
                tensor[page] = tensor[self.pages[i]]
            self.pool.give_back([self.pages[i]])
            self.pages[i] = page
        self.pages += fresh

    def _shared_ahead(self, tokens: int) -> list[int]:
        """Places in `pages` of those that `tokens` more would be written to and others hold."""
        first = self.length // self.pool.page_size
        end = min(self.pool.pages_for(self.length + tokens), len(self.pages))
        return [i for i in range(first, end) if self.pool.users(self.pages[i]) > 1]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more, which a causal forward has written, as context."""
        room = len(self.pages) * self.pool.page_size - self.length
        check_int("tokens", tokens, 0, room)
        self.length += tokens

    def crop(self, length: int) -> None:
        """Forget everything from position `length` on; pages that then hold nothing go back."""
        check_int("length", length, 0, self.length)
        kept = self.pool.pages_for(length)
        self.pool.give_back(self.pages[kept:])
        del self.pages[kept:]
        self.length = length

    def free(self) -> None:
        """Give everything back; the context is then empty."""
        self.pool.give_back(self.pages)
        self.pages, self.length, self._on_host = [], 0, None

    def swap_out(self) -> None:
        """Move the content to host memory and give the pages back."""
        self.crop(self.length)
        pages = torch.tensor(self.pages, dtype=torch.long, device=self.pool.device)
        tensors = (*self.pool.keys, *self.pool.values)
        self._on_host = [tensor[pages].cpu() for tensor in tensors]
        self.pool.give_back(self.pages)
        self.pages = []

    def swap_in(self) -> None:
        """Bring the content back into pages; OutOfPages leaves it where it is."""
        pages = self.pool.take(self.pool.pages_for(self.length))
        try:
            where = torch.tensor(pages, dtype=torch.long, device=self.pool.device)
            tensors = (*self.pool.keys, *self.pool.values)
            for tensor, content in zip(tensors, self._on_host, strict=True):
                tensor[where] = content.to(self.pool.device)
        except BaseException:
            self.pool.give_back(pages)
            raise
        self.pages, self._on_host = pages, None


class PagedKVCache:
    """The contexts of a batch as a forward sees them; see `KVCache` for the meaning of each.

    keys, values, views: per layer, of the pool's pages.
    block_table: int32 [batch, n], the pages of each request in order.
    lengths: int32 [batch] on the device. max_length: a bound on them known to the host.
    """

    def __init__(
        self, contexts: Sequence[Context], *, max_length: int | None = None, room: int = 0
    ) -> None:
        """max_length: a bound to state in place of the exact one, for work that is kept.

        room: tokens behind that bound for which the block table has places.
        """
        self.contexts = list(contexts)
        longest = max(context.length for context in contexts)
        pool, bound = contexts[0].pool, longest if max_length is None else max_length
        width = max(1, pool.pages_for(bound + room), *(len(c.pages) for c in contexts))
        # Behind a request's pages stands its last: a length out of range hits nobody else.
        rows = [(c.pages or [0]) + (c.pages or [0])[-1:] * width for c in contexts]
        table = torch.tensor([row[:width] for row in rows], dtype=torch.int32)
        lengths = torch.tensor([c.length for c in contexts], dtype=torch.int32)
        self._see(pool, to_device(table, pool.device), to_device(lengths, pool.device), bound)

    @classmethod
    def over(
        cls, pool: PagePool, block_table: Tensor, lengths: Tensor, max_length: int
    ) -> "PagedKVCache":
        """A cache of given tensors, for callers that keep the contexts themselves."""
        cache = cls.__new__(cls)
        cache.contexts = []
        cache._see(pool, block_table, lengths, max_length)
        return cache

    def _see(self, pool: PagePool, block_table: Tensor, lengths: Tensor, max_length: int) -> None:
        self.keys, self.values, self.dtype = pool.keys, pool.values, pool.dtype
        self.key_scales, self.value_scales = pool.key_scales, pool.value_scales
        self.page_size = pool.page_size
        self.block_table, self.lengths, self.max_length = block_table, lengths, max_length
        self.views = views_of(self)

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        return self.block_table.shape[1] * self.page_size

    def check_room(self, tokens: int) -> None:
        """Raise ValueError unless every context has reserved room for `tokens` more."""
        for context in self.contexts:
            room = len(context.pages) * self.page_size - context.length
            if tokens > room:
                raise ValueError(
                    f"{tokens} tokens do not fit behind a context of {context.length}, which has"
                    f" room for {room}"
                )

    def advance(self, tokens: int) -> None:
        """Count `tokens` more, which a causal forward has written, as context of every request."""
        for context in self.contexts:
            context.advance(tokens)
        self.lengths += tokens
        self.max_length += tokens


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on `device` for which the host does not wait."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
