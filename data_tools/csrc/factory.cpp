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
#include "factory_words.h"

namespace py = pybind11;
using namespace ziya;

namespace {

using Texts = std::vector<std::string_view>;  // views of Python's own UTF-8 copies, alive while the list is
using Hashes = py::array_t<uint64_t, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<uint8_t, py::array::c_style | py::array::forcecast>;

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

std::string name_of(Method method) { return method == Method::SIMHASH ? "simhash" : "minhash"; }

py::array_t<uint64_t> signatures(const Texts& texts, const std::string& name) {
    const Method method = method_of(name);
    return for_each<uint64_t>(texts, WORDS, [&](std::string_view text, uint64_t* out) {
        const Signature page = signature_of(text, method);
        std::memcpy(out, &page, sizeof page);
    });
}

size_t count_of(const Hashes& rows) {
    if (rows.ndim() != 2 || rows.shape(1) != static_cast<py::ssize_t>(WORDS))
        throw std::invalid_argument("signatures are rows of " + std::to_string(WORDS) + " 64-bit numbers");
    return static_cast<size_t>(rows.shape(0));
}

// (page or -1, Hamming distance, Jaccard) of each row, and back.
py::tuple arrays_of(const std::vector<Match>& matches) {
    const auto count = static_cast<py::ssize_t>(matches.size());
    py::array_t<int64_t> pages(count);
    py::array_t<int32_t> distances(count);
    py::array_t<double> alike(count);
    for (py::ssize_t at = 0; at < count; ++at) {
        pages.mutable_at(at) = matches[at].page, distances.mutable_at(at) = matches[at].distance;
        alike.mutable_at(at) = matches[at].jaccard;
    }
    return py::make_tuple(pages, distances, alike);
}

std::vector<Match> matches_of(const py::tuple& found, size_t count) {
    const auto pages = found[0].cast<py::array_t<int64_t, py::array::forcecast>>();
    const auto distances = found[1].cast<py::array_t<int32_t, py::array::forcecast>>();
    const auto alike = found[2].cast<py::array_t<double, py::array::forcecast>>();
    if (static_cast<size_t>(pages.size()) != count || distances.size() != pages.size() || alike.size() != pages.size())
        throw std::invalid_argument("one match a signature");
    std::vector<Match> matches(count);
    for (size_t at = 0; at < count; ++at) matches[at] = {pages.at(at), distances.at(at), alike.at(at)};
    return matches;
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
        .def("strike", [](const WordList& words, const Texts& texts, double share, size_t least, size_t longest) {
            return for_each<bool>(texts, 1, [&](std::string_view text, bool* out) { *out = !words.bars(text, share, least, longest).empty(); });
        }, py::arg("texts"), py::arg("share"), py::arg("least"), py::arg("longest"), "bool [texts]: whether bars finds any")
        .def("bars", &WordList::bars, py::arg("text"), py::arg("share"), py::arg("least"), py::arg("longest"),
             py::call_guard<py::gil_scoped_release>(), "The numbers of the lines that are made of listed phrases");

    py::class_<Hints>(m, "Hints", "Adds up hints of several kinds, line by line.")
        .def(py::init<const std::vector<std::vector<std::string>>&>(), py::arg("kinds"))
        .def("score", [](const Hints& hints, const Texts& texts) {
            return for_each<int32_t>(texts, 1, [&](std::string_view text, int32_t* out) { *out = hints.score(text); });
        }, py::arg("lines"), "int32 [lines]: different hints, at most two of a kind, less those of the last kind")
        .def("strike", [](const Hints& hints, const Texts& texts, double least, size_t reach, size_t small) {
            return for_each<bool>(texts, 1, [&](std::string_view text, bool* out) { *out = !hints.lines(text, least, reach, small).empty(); });
        }, py::arg("texts"), py::arg("least"), py::arg("reach"), py::arg("small"), "bool [texts]: whether lines finds any")
        .def("lines", &Hints::lines, py::arg("text"), py::arg("least"), py::arg("reach"), py::arg("small"),
             py::call_guard<py::gil_scoped_release>(), "The numbers of the lines with so many hints");

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
        .def(py::init<uint64_t, double, uint64_t, uint64_t>(), py::arg("capacity"), py::arg("rate"),
             py::arg("part") = 0, py::arg("parts") = 1)
        .def_static("load", &Bloom::load, py::arg("path"), py::arg("part") = 0, py::arg("parts") = 1)
        .def_property_readonly("probes", &Bloom::probes)
        .def_property_readonly("total", &Bloom::total)
        .def_property_readonly("words", [](const py::object& self) {
            const auto& words = self.cast<const Bloom&>().words();
            return py::array_t<uint64_t>(static_cast<py::ssize_t>(words.size()), words.data(), self);  // no copy
        })
        .def("test", [](Bloom& bloom, const Hashes& keys) {
            return for_hashes(keys, [&](uint64_t key) { return bloom.test(key); });
        }, py::arg("keys"))
        .def("test_and_add", [](Bloom& bloom, const Hashes& keys) {
            return for_hashes(keys, [&](uint64_t key) { return bloom.test_and_add(key); });
        }, py::arg("keys"));

    py::class_<NearPages>(m, "NearPages", "A part of the pages of an index by likeness, in eight bands; 60 bytes each.")
        .def(py::init([](const std::string& name, uint64_t part, uint64_t parts) {
            return NearPages(method_of(name), part, parts);
        }), py::arg("method"), py::arg("part") = 0, py::arg("parts") = 1)
        .def_property_readonly("bytes", &NearPages::bytes)
        .def("find", [](const NearPages& index, const Hashes& rows, int distance, double least) {
            std::vector<Match> matches(count_of(rows));
            {
                const Signature* pages = reinterpret_cast<const Signature*>(rows.data());
                py::gil_scoped_release release;
                for (size_t at = 0; at < matches.size(); ++at) matches[at] = index.find(pages[at], distance, least);
            }
            return arrays_of(matches);
        }, py::arg("signatures"), py::arg("distance"), py::arg("jaccard"))
        .def("add", [](NearPages& index, const Hashes& rows, uint64_t first, const Bytes& open) {
            const size_t count = count_of(rows);
            if (static_cast<size_t>(open.size()) != count) throw std::invalid_argument("one number of bands a signature");
            const Signature* pages = reinterpret_cast<const Signature*>(rows.data());
            const uint8_t* bands = open.data();
            py::gil_scoped_release release;
            for (size_t at = 0; at < count; ++at) index.add(pages[at], first + at, bands[at]);
        }, py::arg("signatures"), py::arg("first"), py::arg("open"));

    py::class_<NearOrder>(m, "NearOrder", "Decides in order which pages an index takes, whatever parts it is cut into.")
        .def(py::init([](const std::string& name) { return NearOrder(method_of(name)); }), py::arg("method"))
        .def("__len__", &NearOrder::size)
        .def_property_readonly("bytes", &NearOrder::bytes)
        .def_property_readonly("method", [](const NearOrder& order) { return name_of(order.method()); })
        .def("admit", [](NearOrder& order, const Hashes& rows) {
            py::array_t<uint8_t> open(static_cast<py::ssize_t>(count_of(rows)));
            const Signature* pages = reinterpret_cast<const Signature*>(rows.data());
            for (py::ssize_t at = 0; at < open.size(); ++at) open.mutable_at(at) = order.admit(pages[at]);
            return open;
        }, py::arg("signatures"))
        .def("resolve", [](NearOrder& order, const Hashes& rows, const py::tuple& found, int distance, double least) {
            std::vector<Match> matches = matches_of(found, count_of(rows));
            py::array_t<uint8_t> open(static_cast<py::ssize_t>(matches.size()));
            uint8_t* bands = open.mutable_data();
            {
                const Signature* pages = reinterpret_cast<const Signature*>(rows.data());
                py::gil_scoped_release release;
                order.resolve(pages, matches.size(), matches.data(), bands, distance, least);
            }
            return py::make_tuple(arrays_of(matches), open);
        }, py::arg("signatures"), py::arg("found"), py::arg("distance"), py::arg("jaccard"));
    m.def("best", [](const std::vector<py::tuple>& found) {
        std::vector<Match> best;
        for (const py::tuple& part : found) {
            const std::vector<Match> matches = matches_of(part, py::len(part[0]));
            if (best.empty()) best.resize(matches.size());
            if (matches.size() != best.size()) throw std::invalid_argument("parts answer for the same signatures");
            for (size_t at = 0; at < best.size(); ++at) better(best[at], matches[at]);
        }
        return arrays_of(best);
    }, py::arg("found"), "What several parts found, as one.");

    py::class_<GramSet>(m, "GramSet", "Runs of tokens of benchmark texts, to be found in documents.")
        .def(py::init<uint32_t, uint32_t>(), py::arg("grams"), py::arg("shortest"))
        .def("add", &GramSet::add, py::arg("text"), py::arg("owner"))
        .def("__len__", &GramSet::size)
        .def("find", [](const GramSet& grams, const Texts& texts) {
            return for_each<int64_t>(texts, 4, [&](std::string_view text, int64_t* out) { grams.find(text, out); });
        }, py::arg("texts"), "int64 [texts, 4]: hits, owner of the first, its first byte and the byte behind it");
}
