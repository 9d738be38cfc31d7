// ziya_data._indexed: the fast side of ziya_data.indexed. The types are in indexed/*.h; this file binds them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "indexed/checksum.h"
#include "indexed/corpus.h"
#include "indexed/interleave.h"
#include "indexed/megatron.h"
#include "indexed/packing.h"
#include "indexed/permutation.h"

namespace py = pybind11;
using namespace ziya;

namespace {

// (tokens, lengths, pointers, documents: each a buffer of bytes; dtype code, bytes a token)
using FileTuple = std::tuple<py::buffer, py::buffer, py::buffer, py::buffer, int, int>;

File as_file(const FileTuple& given) {
    const auto& [tokens, lengths, pointers, documents, code, item_size] = given;
    const auto bytes = [](const py::buffer& buffer) { return buffer.request(); };
    File file{};
    file.tokens = static_cast<const char*>(bytes(tokens).ptr);
    file.lengths = static_cast<const char*>(bytes(lengths).ptr);
    file.pointers = static_cast<const char*>(bytes(pointers).ptr);
    file.documents = static_cast<const char*>(bytes(documents).ptr);
    file.token_bytes = bytes(tokens).size;
    file.sequence_count = bytes(lengths).size / 4;
    file.document_count = bytes(documents).size / 8 - 1;
    file.code = code;
    file.item_size = item_size;
    file.one_to_one = file.document_count == file.sequence_count;
    // Equal counts still allow an empty document beside one of two sequences.
    for (int64_t d = 0; file.one_to_one && d < file.document_count; ++d)
        file.one_to_one = load<int64_t>(file.documents, d) == d;
    return file;
}

// A Corpus that keeps the buffers (and so the memory maps) under it alive.
struct HeldCorpus {
    explicit HeldCorpus(std::vector<FileTuple> given) : held(std::move(given)), corpus(files()) {}
    std::vector<File> files() const {
        std::vector<File> all;
        for (const FileTuple& file : held) all.push_back(as_file(file));
        return all;
    }
    std::vector<FileTuple> held;
    Corpus corpus;
};

// Hands a vector to numpy without a copy.
template <class T>
py::array_t<int64_t> as_array(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
    auto* moved = new std::vector<T>(std::move(values));
    py::capsule owner(moved, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<int64_t>(shape, reinterpret_cast<const int64_t*>(moved->data()), owner);
}

template <class T>
py::array numpy_of(std::vector<T>&& values, std::vector<py::ssize_t> shape) {
    auto* moved = new std::vector<T>(std::move(values));
    py::capsule owner(moved, [](void* p) { delete static_cast<std::vector<T>*>(p); });
    return py::array_t<T>(shape, moved->data(), owner);
}

template <class Work>
auto without_gil(Work work) {
    py::gil_scoped_release release;
    return work();
}

using Pieces = py::array_t<int64_t, py::array::c_style>;

// One row of what `find` says: its pieces, found and copied without the interpreter's lock.
template <class Find>
py::tuple row_of(const HeldCorpus& self, int64_t length, int64_t pad, Find find) {
    py::array_t<int64_t> tokens(length + 1);
    py::array_t<int32_t> starts(length);
    py::array_t<bool> mask(length);
    auto* tokens_out = tokens.mutable_data();
    auto* starts_out = starts.mutable_data();
    auto* mask_out = mask.mutable_data();
    {
        py::gil_scoped_release release;
        const auto [pieces, count] = find();
        fill_row(self.corpus, pieces, count, length, pad, tokens_out, starts_out, mask_out);
    }
    return py::make_tuple(std::move(tokens), std::move(starts), std::move(mask));
}

py::tuple row(const HeldCorpus& self, const Pieces& pieces, int64_t length, int64_t pad) {
    const auto* given = reinterpret_cast<const Piece*>(pieces.data());
    const int64_t count = pieces.shape(0);
    return row_of(self, length, pad, [&] { return std::pair(given, count); });
}

// Sample `number` of those that start in `epoch`, whose sample index is given.
py::tuple stream_row(const HeldCorpus& self, uint64_t key, int64_t epoch, const Pieces& index, int64_t number,
                     int64_t length, int64_t pad) {
    const int64_t* starts = index.data();
    const uint64_t samples = index.shape(0);
    std::vector<Piece> pieces;
    return row_of(self, length, pad, [&] {
        const uint64_t slot = Permutation(key, epoch, kSamples, samples)(number);
        pieces = self.corpus.stream_pieces(key, epoch, starts[2 * slot], starts[2 * slot + 1], length + 1);
        return std::pair<const Piece*, int64_t>(pieces.data(), pieces.size());
    });
}

// (document index, sample index, shuffle index); the callers have bounded every count.
py::tuple megatron_indexes(const HeldCorpus& self, uint32_t seed, int64_t epochs, int64_t samples_together,
                           bool separate_last, int64_t samples, int64_t length) {
    Generator generator(seed);
    const Corpus& corpus = self.corpus;
    auto order = without_gil([&] { return document_index(corpus.documents(), epochs, separate_last, generator); });
    // Megatron's own choice of type.
    int64_t largest = order.size();
    for (int64_t d = 0; d < corpus.documents(); ++d) largest = std::max(largest, corpus.length(d));
    py::array sample_index;
    const auto build = [&](auto zero) {
        using T = decltype(zero);
        auto index = without_gil(
            [&] { return listed_sample_index<T>(corpus, order.data(), order.size(), samples, length); });
        const py::ssize_t rows = index.size() / 2;
        sample_index = numpy_of(std::move(index), {rows, 2});
    };
    if (largest <= INT32_MAX)
        build(int32_t{0});
    else
        build(int64_t{0});
    auto shuffle = without_gil([&] { return shuffle_index(samples, samples_together, generator); });
    const py::ssize_t entries = order.size();
    return py::make_tuple(numpy_of(std::move(order), {entries}), sample_index,
                          numpy_of(std::move(shuffle), {samples}));
}

template <class T>
py::tuple packed(const HeldCorpus& self, const PieceCounts& counts, uint64_t key, int64_t epoch, int64_t length) {
    Packed<T> made = without_gil([&] { return pack<T>(self.corpus, counts, key, epoch, length); });
    const py::ssize_t columns = counts.cut ? 2 : 1, rows = made.rows.size();
    return py::make_tuple(numpy_of(std::move(made.pieces), {counts.pieces, columns}),
                          numpy_of(std::move(made.rows), {rows}));
}

// (document, first token, tokens) of the pieces that `packed` numbers.
py::array_t<int64_t> packed_pieces(const HeldCorpus& self,
                                   const py::array_t<int64_t, py::array::c_style | py::array::forcecast>& numbered,
                                   int64_t length) {
    const py::ssize_t count = numbered.shape(0), columns = numbered.shape(1);
    py::array_t<int64_t> pieces(std::vector<py::ssize_t>{count, 3});
    const int64_t* from = numbered.data();
    int64_t* out = pieces.mutable_data();
    for (py::ssize_t p = 0; p < count; ++p, from += columns, out += 3) {
        const int64_t first = columns == 2 ? from[1] * length : 0;
        out[0] = from[0];
        out[1] = first;
        out[2] = std::min(length + 1, self.corpus.length(from[0]) - first);
    }
    return pieces;
}

py::array_t<int64_t> permute(uint64_t key, uint64_t epoch, uint64_t purpose, int64_t n) {
    py::array_t<int64_t> order(n);
    auto* out = order.mutable_data();
    py::gil_scoped_release release;
    const Permutation permutation(key, epoch, purpose, n);
    for (int64_t i = 0; i < n; i += Permutation::kBatch)
        permutation.fill(i, std::min(Permutation::kBatch, n - i), reinterpret_cast<uint64_t*>(out + i));
    return order;
}

// A hash of each document's ids, the same whatever their dtype: FNV-1a's steps over whole ids, then SplitMix64's
// finaliser.
py::array_t<uint64_t> document_hashes(const py::array_t<int64_t, py::array::c_style>& tokens,
                                      const py::array_t<int64_t, py::array::c_style>& lengths) {
    const int64_t count = lengths.size();
    py::array_t<uint64_t> hashes(count);
    const int64_t *id = tokens.data(), *length = lengths.data();
    uint64_t* out = hashes.mutable_data();
    py::gil_scoped_release release;
    for (int64_t d = 0; d < count; ++d) {
        uint64_t hash = 0xcbf29ce484222325ULL;
        for (int64_t i = 0; i < length[d]; ++i) hash = (hash ^ static_cast<uint64_t>(*id++)) * 0x100000001b3ULL;
        out[d] = scramble(hash ^ static_cast<uint64_t>(length[d]));
    }
    return hashes;
}

// zlib's CRC-32. kind: 0 plain, 1 carry-less products, 2 those on 512 bits; more than the processor can is cut down.
uint32_t crc32_of(const py::buffer& data, uint32_t crc, int kind) {
    const py::buffer_info held = data.request();
    const auto able = static_cast<Cpu>(std::min(kind, static_cast<int>(cpu())));
    py::gil_scoped_release release;
    return crc32(held.ptr, held.size * held.itemsize, crc, able);
}

// Elements of `bytes` bytes each, from element `first` of a box on; see checksum.h.
uint64_t place_sum_of(const py::buffer& data, int bytes, int64_t first, int64_t width, int64_t stride, int64_t offset,
                      uint64_t salt) {
    const py::buffer_info held = data.request();
    const int64_t size = held.size * held.itemsize / bytes;
    py::gil_scoped_release release;
    const auto sum = [&](auto* bits) { return place_sum(bits, size, first, width, stride, offset, salt); };
    switch (bytes) {
        case 1: return sum(static_cast<const uint8_t*>(held.ptr));
        case 2: return sum(static_cast<const uint16_t*>(held.ptr));
        case 4: return sum(static_cast<const uint32_t*>(held.ptr));
        case 8: return sum(static_cast<const uint64_t*>(held.ptr));
        default: throw std::invalid_argument("elements must be of 1, 2, 4 or 8 bytes");
    }
}

}  // namespace

PYBIND11_MODULE(_indexed, m) {
    m.doc() = "The fast side of ziya_data.indexed; see _indexed.pyi.";
    m.attr("DOCUMENTS") = static_cast<int>(kDocuments);
    m.attr("SAMPLES") = static_cast<int>(kSamples);

    m.def("check", [](const FileTuple& given) {
        const File file = as_file(given);
        return without_gil([&] { return check(file); });
    });
    m.def("crc32", &crc32_of, py::arg("data"), py::arg("crc") = 0, py::arg("kind") = static_cast<int>(Cpu::wide));
    m.def("place_sum", &place_sum_of, py::arg("data"), py::arg("bytes"), py::arg("first"), py::arg("width"),
          py::arg("stride"), py::arg("offset"), py::arg("salt"));
    m.def("document_hashes", &document_hashes);
    m.def("permute", &permute);
    m.def("permute_one", [](uint64_t key, uint64_t epoch, uint64_t purpose, uint64_t n, uint64_t i) {
        return Permutation(key, epoch, purpose, n)(i);
    });

    py::class_<HeldCorpus>(m, "Corpus")
        .def(py::init<std::vector<FileTuple>>())
        .def_property_readonly("documents", [](const HeldCorpus& self) { return self.corpus.documents(); })
        .def_property_readonly("tokens", [](const HeldCorpus& self) { return self.corpus.tokens(); })
        .def("sample_index",
             [](const HeldCorpus& self, uint64_t key, int64_t epoch, int64_t length) {
                 auto index = without_gil([&] { return self.corpus.sample_index(key, epoch, length); });
                 const py::ssize_t samples = index.size() / 2;
                 return as_array(std::move(index), {samples, 2});
             })
        .def("stream_pieces",
             [](const HeldCorpus& self, uint64_t key, int64_t epoch, int64_t rank, int64_t offset,
                int64_t count) {
                 auto pieces =
                     without_gil([&] { return self.corpus.stream_pieces(key, epoch, rank, offset, count); });
                 const py::ssize_t n = pieces.size();
                 return as_array(std::move(pieces), {n, 3});
             })
        .def("pack",
             [](const HeldCorpus& self, uint64_t key, int64_t epoch, int64_t length) {
                 const auto counts = without_gil([&] { return PieceCounts(self.corpus, length); });
                 const bool small = std::max(counts.pieces, self.corpus.documents()) < UINT32_MAX;
                 return small ? packed<uint32_t>(self, counts, key, epoch, length)
                              : packed<int64_t>(self, counts, key, epoch, length);
             })
        .def("packed_tokens",
             [](const HeldCorpus& self, int64_t length) {
                 return without_gil([&] { return PieceCounts(self.corpus, length).tokens; });
             })
        .def("packed_pieces", &packed_pieces)
        .def("megatron_indexes", &megatron_indexes)
        .def("listed_pieces",
             [](const HeldCorpus& self, const py::array_t<int32_t, py::array::c_style>& order, int64_t rank,
                int64_t offset, int64_t count) {
                 const int32_t* listed = order.data();
                 auto pieces = without_gil([&] { return listed_pieces(self.corpus, listed, rank, offset, count); });
                 const py::ssize_t n = pieces.size();
                 return as_array(std::move(pieces), {n, 3});
             })
        .def("row", &row)
        .def("stream_row", &stream_row);

    py::class_<Interleave>(m, "Interleave")
        .def(py::init<std::vector<int64_t>>())
        .def("at", &Interleave::at, py::call_guard<py::gil_scoped_release>())
        .def("counts", &Interleave::counts, py::call_guard<py::gil_scoped_release>());
}
