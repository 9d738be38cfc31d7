// Training of the n-gram model of factory_model.h: counts, discounts, pruning, interpolation, one file out.
#pragma once

#include "factory_model.h"

namespace ziya {

struct Gram {
    uint64_t key = 0, tail = 0, context = 0;  // tail: without the first token; context: without the last
    double total = 0, kept_mass = 0;          // of what follows this gram
    double probability = 0;
    uint32_t count = 0;
    bool opens = false, kept = false;  // opens: begins with <s>, so nothing can stand on its left
};

class Trainer {
  public:
    Trainer(int order, int prune) : order_(order), prune_(prune), grams_(order + 1) {
        if (order < 2 || order > LONGEST)
            throw std::invalid_argument("order=" + std::to_string(order) + " is not within 2 to 8");
        grams_[0].insert(5);
    }

    void add(std::string_view text) {
        std::vector<uint64_t> line;
        for_lines(text, line, [&](const std::vector<uint64_t>& tokens) {
            Keys before = keys_at(tokens, 0, order_);
            Gram& start = grams_[1].insert(before.key[1]);
            start.tail = start.context = 5;
            start.opens = true;
            for (size_t at = 1; at < tokens.size(); ++at) {
                const Keys keys = keys_at(tokens, at, order_);
                for (int n = 1; n <= keys.longest; ++n) {
                    Gram& gram = grams_[n].insert(keys.key[n]);
                    gram.tail = keys.key[n - 1];
                    gram.context = before.key[n - 1];
                    gram.opens = static_cast<size_t>(n) == at + 1;
                    ++gram.count;
                }
                before = keys;
            }
            tokens_ += tokens.size() - 1;
        });
    }

    void save(const std::string& path, const std::string& language) {
        if (!tokens_)
            throw std::invalid_argument("the reference text holds no token; give a text of at least some thousand words");
        adjust_counts();
        mark_kept();
        for (int n = 1; n <= order_; ++n) interpolate(n);
        write(path, language);
    }

  private:
    // Kneser-Ney: below the highest order a gram counts the different tokens seen on its left.
    void adjust_counts() {
        for (int n = order_ - 1; n >= 1; --n) {
            grams_[n].each([](Gram& gram) { if (!gram.opens) gram.count = 0; });
            grams_[n + 1].each([&](Gram& gram) { ++grams_[n].find(gram.tail)->count; });
        }
    }

    // From the highest order down, so that a kept gram's tail and context are kept with it.
    void mark_kept() {
        for (int n = order_; n >= 1; --n)
            grams_[n].each([&](Gram& gram) {
                gram.kept = gram.kept || n <= 2 || gram.count > static_cast<uint32_t>(prune_);
                if (gram.kept && n > 1) grams_[n - 1].find(gram.tail)->kept = grams_[n - 1].find(gram.context)->kept = true;
            });
    }

    // Discounts of Chen and Goodman; lmplz's fall-back values where a text is too small to estimate them.
    std::array<double, 4> discounts(int n) {
        double seen[5] = {};
        grams_[n].each([&](Gram& gram) { if (gram.count >= 1 && gram.count <= 4) ++seen[gram.count]; });
        std::array<double, 4> discount = {0, 0.5, 1.0, 1.5};
        if (!seen[1] || !seen[2] || !seen[3] || !seen[4]) return discount;
        const double y = seen[1] / (seen[1] + 2 * seen[2]);
        std::array<double, 4> estimated = {0, 0, 0, 0};
        for (int k = 1; k <= 3; ++k) {
            estimated[k] = k - (k + 1) * y * seen[k + 1] / seen[k];
            if (!(estimated[k] > 0 && estimated[k] < k)) return discount;
        }
        return estimated;
    }

    void interpolate(int n) {
        const std::array<double, 4> discount = discounts(n);
        const auto discounted = [&](const Gram& gram) { return gram.count - discount[std::min(gram.count, 3u)]; };
        grams_[n].each([&](Gram& gram) {
            if (!gram.count || (n == 1 && gram.opens)) return;
            Gram& context = *grams_[n - 1].find(gram.context);
            context.total += gram.count;
            if (gram.kept) context.kept_mass += discounted(gram);
        });
        const double words = static_cast<double>(grams_[1].size());  // <s> is not predicted, the unknown word is: -1 + 1
        grams_[n].each([&](Gram& gram) {
            if (!gram.count || (n == 1 && gram.opens)) return;
            const Gram& context = *grams_[n - 1].find(gram.context);
            const double lower = n == 1 ? 1 / words : grams_[n - 1].find(gram.tail)->probability;
            gram.probability = left_over(context) * lower + (gram.kept ? discounted(gram) / context.total : 0);
        });
    }

    static double left_over(const Gram& context) {
        return context.total > 0 ? std::max(1 - context.kept_mass / context.total, 1e-12) : 1;
    }

    void write(const std::string& path, const std::string& language) {
        std::vector<Scored> out;
        for (int n = 1; n <= order_; ++n)
            grams_[n].each([&](Gram& gram) {
                if (!gram.kept) return;
                const double probability = gram.probability > 0 ? gram.probability : 1;  // only <s>, never predicted
                out.push_back({gram.key, static_cast<float>(std::log(probability)),
                               static_cast<float>(std::log(n < order_ ? left_over(gram) : 1))});
            });
        std::sort(out.begin(), out.end(), [](const Scored& a, const Scored& b) { return a.key < b.key; });
        Header header{};
        std::memcpy(header.magic, MAGIC, sizeof MAGIC);
        header.order = static_cast<uint32_t>(order_);
        language.copy(header.language, 3);
        header.grams = out.size();
        header.tokens = tokens_;
        header.unknown = static_cast<float>(std::log(left_over(*grams_[0].find(5)) / static_cast<double>(grams_[1].size())));
        std::FILE* file = std::fopen(path.c_str(), "wb");
        bool fine = file && std::fwrite(&header, sizeof header, 1, file) == 1 &&
                    std::fwrite(out.data(), sizeof(Scored), out.size(), file) == out.size();
        if (file) fine = !std::fclose(file) && fine;
        if (!fine) throw FileError(path + " cannot be written");
    }

    int order_, prune_;
    uint64_t tokens_ = 0;
    std::vector<Table<Gram>> grams_;  // by order; order 0 is the empty context
};

}  // namespace ziya
