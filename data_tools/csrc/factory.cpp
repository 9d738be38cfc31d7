// ziya_data._factory: the data factory's inner loops. Each call takes a batch of texts and releases the GIL.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>

#include "factory_classifier.h"
#include "factory_duplicates.h"
#include "factory_grams.h"
#include "factory_hints.h"
#include "factory_measure.h"
#include "factory_model.h"
#include "factory_near.h"
#include "factory_train.h"

namespace py = pybind11;
using namespace ziya;

namespace {

using Texts = std::vector<std::string_view>;  // views of Python's own UTF-8 copies, alive while the list is
using Hashes = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>;

template <class Value, class Compute>
py::array_t<Value> for_each(const Texts& texts, size_t columns, Compute compute) {
    py::array_t<Value> out(columns > 1 ? std::vector<size_t>{texts.size(), columns} : std::vector<size_t>{texts.size()});
    Value* values = out.mutable_data();
    py::gil_scoped_release release;
    for (size_t at = 0; at < texts.size(); ++at) compute(texts[at], values + at * columns);
    return out;
}

py::array_t<bool> for_hashes(const Hashes& hashes, const std::function<bool(uint64_t)>& visit) {
    py::array_t<bool> out(hashes.size());
    bool* seen = out.mutable_data();
    const uint64_t* keys = hashes.data();
    const py::ssize_t count = hashes.size();
    py::gil_scoped_release release;
    for (py::ssize_t at = 0; at < count; ++at) seen[at] = visit(keys[at]);
    return out;
}

py::array_t<double> perplexity(const LanguageModel& model, const Texts& texts) {
    return for_each<double>(texts, 1, [&](std::string_view text, double* out) {
        const auto [total, count] = model.score(text);
        *out = count ? std::exp(-total / static_cast<double>(count)) : std::numeric_limits<double>::infinity();
    });
}

Method method_of(const std::string& name) {
    if (name != "simhash" && name != "minhash") throw std::invalid_argument("method '" + name + "' is neither minhash nor simhash");
    return name == "simhash" ? Method::SIMHASH : Method::MINHASH;
}

py::array_t<uint64_t> signatures(const Texts& texts, const std::string& name) {
    const Method method = method_of(name);
    return for_each<uint64_t>(texts, WORDS, [&](std::string_view text, uint64_t* out) {
        const Signature page = signature_of(text, method);
        std::memcpy(out, &page, sizeof page);
    });
}

// Calls visit(signature) for each row; (page or -1, Hamming distance, Jaccard) of each.
template <class Visit>
py::tuple for_signatures(const Hashes& rows, Visit visit) {
    if (rows.ndim() != 2 || rows.shape(1) != static_cast<py::ssize_t>(WORDS))
        throw std::invalid_argument("signatures are rows of " + std::to_string(WORDS) + " 64-bit numbers");
    const py::ssize_t count = rows.shape(0);
    py::array_t<int64_t> pages(count);
    py::array_t<int32_t> distances(count);
    py::array_t<double> alike(count);
    int64_t* page = pages.mutable_data();
    int32_t* distance = distances.mutable_data();
    double* jaccard = alike.mutable_data();
    const uint64_t* row = rows.data();
    {
        py::gil_scoped_release release;
        for (py::ssize_t at = 0; at < count; ++at, row += WORDS) {
            Signature signature;
            std::memcpy(&signature, row, sizeof signature);
            const Match match = visit(signature);
            page[at] = match.page, distance[at] = match.distance, jaccard[at] = match.jaccard;
        }
    }
    return py::make_tuple(pages, distances, alike);
}

}  // namespace

PYBIND11_MODULE(_factory, m) {
    m.doc() = "Inner loops of the data factory: counting, n-gram language model, Bloom filter, SimHash index.";

    py::register_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const FileError& error) {
            PyErr_SetString(PyExc_OSError, error.what());
        }
    });

    py::tuple names(static_cast<size_t>(FACT_COUNT));
    for (int at = 0; at < FACT_COUNT; ++at) names[at] = FACT_NAMES[at];
    m.attr("FACTS") = names;
    py::class_<Measure>(m, "Measure", "Counts what the rules ask for; float64 [texts, len(FACTS)].")
        .def(py::init<const std::vector<std::string>&, const std::vector<std::vector<std::string>>&>(),
             py::arg("stop_words"), py::arg("lists"))
        .def("__call__", [](const Measure& measure, const Texts& texts) {
            return for_each<double>(texts, FACT_COUNT, [&](std::string_view text, double* out) { measure(text, out); });
        }, py::arg("texts"));

    py::class_<Scanner>(m, "Scanner", "Which sets of characters, or pairs of sets side by side, a text holds.")
        .def(py::init<const std::vector<std::pair<Scanner::Set, Scanner::Set>>&>(), py::arg("sets"))
        .def("__call__", [](const Scanner& scanner, const Texts& texts) {
            return for_each<uint32_t>(texts, 1, [&](std::string_view text, uint32_t* out) { *out = scanner(text); });
        }, py::arg("texts"), "uint32 [texts]: bit i is set for a text that holds sets[i]");

    py::class_<WordList>(m, "WordList", "Counts listed words and phrases in texts.")
        .def(py::init<const std::vector<std::string>&>(), py::arg("phrases"))
        .def("count", [](const WordList& words, const Texts& texts) {
            return for_each<uint32_t>(texts, 1, [&](std::string_view text, uint32_t* out) { *out = words.count(text); });
        }, py::arg("texts"), "uint32 [texts]")
        .def("covered", [](const WordList& words, const Texts& texts, size_t least) {
            return for_each<double>(texts, 1, [&](std::string_view text, double* out) { *out = words.covered(text, least); });
        }, py::arg("texts"), py::arg("least"), "float64 [texts]: share of the tokens in listed phrases, of which it holds so many")
        .def("most_covered", [](const WordList& words, std::string_view text, size_t least, size_t longest) {
            const py::gil_scoped_release release;
            return words.most_covered(text, least, longest);
        }, py::arg("text"), py::arg("least"), py::arg("longest"), "The highest of its lines of at most so many bytes");

    py::class_<Hints>(m, "Hints", "Adds up hints of several kinds, line by line.")
        .def(py::init<const std::vector<std::vector<std::string>>&>(), py::arg("kinds"))
        .def("score", [](const Hints& hints, const Texts& texts) {
            return for_each<int32_t>(texts, 1, [&](std::string_view text, int32_t* out) { *out = hints.score(text); });
        }, py::arg("lines"), "int32 [lines]: different hints, at most two of a kind, less those of the last kind")
        .def("highest", [](const Hints& hints, std::string_view text, size_t longest) {
            const py::gil_scoped_release release;
            return hints.highest(text, longest);
        }, py::arg("text"), py::arg("longest"), "The highest score of its lines of at most so many bytes");

    py::class_<Trainer>(m, "Trainer", "Counts n-grams line by line and writes the model (modified Kneser-Ney).")
        .def(py::init<int, int>(), py::arg("order"), py::arg("prune"))
        .def("add", &Trainer::add, py::arg("text"), py::call_guard<py::gil_scoped_release>())
        .def("save", &Trainer::save, py::arg("path"), py::arg("language"), py::call_guard<py::gil_scoped_release>());
    py::class_<LanguageModel>(m, "LanguageModel", "Scores text; made by Trainer.")
        .def(py::init(&LanguageModel::load), py::arg("path"))
        .def_property_readonly("order", [](const LanguageModel& model) { return model.header.order; })
        .def_property_readonly("grams", [](const LanguageModel& model) { return model.header.grams; })
        .def_property_readonly("language", [](const LanguageModel& model) { return std::string(model.header.language); })
        .def("score", &LanguageModel::score, py::arg("text"), "(sum of natural log probabilities, tokens)")
        .def("perplexity", &perplexity, py::arg("texts"), "float64 [texts]; infinite for a text without tokens");

    py::class_<Classifier>(m, "Classifier", "Tells good text from bad; made by ClassifierTrainer.")
        .def(py::init(&Classifier::load), py::arg("path"))
        .def_property_readonly("bits", [](const Classifier& model) { return model.header.bits; })
        .def_property_readonly("examples", [](const Classifier& model) { return model.header.examples; })
        .def_property_readonly("language", [](const Classifier& model) { return std::string(model.header.language); })
        .def("score", [](const Classifier& model, const Texts& texts) {
            return for_each<double>(texts, 1, [&](std::string_view text, double* out) { *out = model.score(text); });
        }, py::arg("texts"), "float64 [texts]: log odds that it is bad; infinite for a text without tokens");
    py::class_<ClassifierTrainer>(m, "ClassifierTrainer", "Logistic regression over hashed runs of tokens.")
        .def(py::init<uint32_t>(), py::arg("bits"))
        .def("learn", &ClassifierTrainer::learn, py::arg("good"), py::arg("bad"), py::call_guard<py::gil_scoped_release>())
        .def("held_out", &ClassifierTrainer::held_out, py::arg("text"), py::call_guard<py::gil_scoped_release>(),
             "float64 [examples]: scores of the one in twenty that learn leaves out")
        .def("save", &ClassifierTrainer::save, py::arg("path"), py::arg("language"), py::call_guard<py::gil_scoped_release>());

    m.def("content_hash", [](const Texts& texts) {
        return for_each<uint64_t>(texts, 1, [](std::string_view text, uint64_t* out) { *out = content_hash(text); });
    }, py::arg("texts"), "uint64 [texts]: letters, digits and characters only, case and width folded");
    m.def("scripts", [](const Texts& texts) {
        return for_each<uint32_t>(texts, 5, [](std::string_view text, uint32_t* out) {
            std::fill(out, out + 5, 0u);
            for (const char* at = text.data(); at < text.data() + text.size();) {
                const Class kind = class_of(next_code(at));
                if (kind >= HAN && kind <= LETTER) ++out[kind - HAN];
            }
        });
    }, py::arg("texts"), "uint32 [texts, 5]: letters that are Han, kana, Hangul, Latin, of other scripts");
    m.def("text_hash", [](const Texts& texts) {
        return for_each<uint64_t>(texts, 1, [](std::string_view text, uint64_t* out) {
            uint64_t hash = text.size();
            for (const char byte : text) hash = mix(hash, static_cast<unsigned char>(byte));
            *out = hash;
        });
    }, py::arg("texts"), "uint64 [texts]: of the bytes as they are");
    m.def("signatures", &signatures, py::arg("texts"), py::arg("method"),
          "uint64 [texts, 7]: 256 bits, eight 16-bit keys, number of tokens");
    m.def("tokens", [](std::string_view text, bool marks) {
        std::vector<uint64_t> out;
        for_tokens(text, marks, [&](uint64_t hash, Class) { out.push_back(hash); });
        return out;
    }, py::arg("text"), py::arg("marks") = false, "hashes of characters (Chinese) and words");

    py::class_<Bloom>(m, "Bloom", "A set of 64-bit keys that may, at a known rate, claim one it does not hold.")
        .def(py::init<uint64_t, double>(), py::arg("capacity"), py::arg("rate"))
        .def_static("load", &Bloom::load, py::arg("path"))
        .def("save", &Bloom::save, py::arg("path"))
        .def_property_readonly("added", &Bloom::added)
        .def_property_readonly("bytes", &Bloom::bytes)
        .def("test", [](Bloom& bloom, const Hashes& keys) {
            return for_hashes(keys, [&](uint64_t key) { return bloom.test(key); });
        }, py::arg("keys"))
        .def("test_and_add", [](Bloom& bloom, const Hashes& keys) {
            return for_hashes(keys, [&](uint64_t key) { return bloom.test_and_add(key); });
        }, py::arg("keys"));

    py::class_<NearIndex>(m, "NearIndex", "Pages by what they are like, in eight bands; 64 bytes a page.")
        .def(py::init([](const std::string& name) { return NearIndex(method_of(name)); }), py::arg("method"))
        .def_static("load", &NearIndex::load, py::arg("path"))
        .def("save", &NearIndex::save, py::arg("path"))
        .def("__len__", &NearIndex::size)
        .def_property_readonly("bytes", &NearIndex::bytes)
        .def_property_readonly("method", [](const NearIndex& index) {
            return index.method() == Method::SIMHASH ? "simhash" : "minhash";
        })
        .def("find", [](const NearIndex& index, const Hashes& rows, int distance, double least) {
            return for_signatures(rows, [&](const Signature& page) { return index.find(page, distance, least); });
        }, py::arg("signatures"), py::arg("distance"), py::arg("jaccard"))
        .def("find_or_add", [](NearIndex& index, const Hashes& rows, int distance, double least) {
            return for_signatures(rows, [&](const Signature& page) {
                const Match match = index.find(page, distance, least);
                if (match.page < 0) index.add(page);
                return match;
            });
        }, py::arg("signatures"), py::arg("distance"), py::arg("jaccard"));

    py::class_<GramSet>(m, "GramSet", "Runs of tokens of benchmark texts, to be found in documents.")
        .def(py::init<uint32_t, uint32_t>(), py::arg("grams"), py::arg("shortest"))
        .def("add", &GramSet::add, py::arg("text"), py::arg("owner"))
        .def("__len__", &GramSet::size)
        .def("find", [](const GramSet& grams, const Texts& texts) {
            return for_each<int64_t>(texts, 4, [&](std::string_view text, int64_t* out) { grams.find(text, out); });
        }, py::arg("texts"), "int64 [texts, 4]: hits, owner of the first, its first byte and the byte behind it");
}
