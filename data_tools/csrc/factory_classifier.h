// A linear classifier of good against bad text: logistic regression over hashed tokens, their pairs and the endings of words.
#pragma once

#include <cmath>

#include "factory_model.h"

namespace ziya {

constexpr char CLASSIFIER_MAGIC[8] = {'Z', 'I', 'Y', 'A', 'L', 'C', '1', 0};

struct ClassifierHeader {
    char magic[8];
    uint32_t bits;  // 2^bits weights follow
    char language[4];
    uint64_t examples;
    float bias;
    uint32_t padding;
};

// The log odds that a text is bad are bias + the mean weight of its runs: a long text is no surer than a short one.
class Classifier {
  public:
    ClassifierHeader header{};

    static Classifier load(const std::string& path) {
        std::FILE* file = std::fopen(path.c_str(), "rb");
        if (!file) throw FileError(path + " cannot be opened; train it with `ziya factory train-scorer`");
        Classifier model;
        bool fine = std::fread(&model.header, sizeof model.header, 1, file) == 1 &&
                    !std::memcmp(model.header.magic, CLASSIFIER_MAGIC, sizeof CLASSIFIER_MAGIC) && model.header.bits <= 28;
        if (fine) {
            model.weights_.resize(size_t{1} << model.header.bits);
            char beyond;
            fine = std::fread(model.weights_.data(), sizeof(float), model.weights_.size(), file) == model.weights_.size() &&
                   std::fread(&beyond, 1, 1, file) == 0;
        }
        std::fclose(file);
        if (!fine)
            throw std::invalid_argument(path + " is not a whole classifier file; train it again with `ziya factory train-scorer`");
        return model;
    }

    void save(const std::string& path) const {
        std::FILE* file = std::fopen(path.c_str(), "wb");
        bool fine = file && std::fwrite(&header, sizeof header, 1, file) == 1 &&
                    std::fwrite(weights_.data(), sizeof(float), weights_.size(), file) == weights_.size();
        if (file) fine = !std::fclose(file) && fine;
        if (!fine) throw FileError(path + " cannot be written");
    }

    // Infinite for a text without tokens.
    double score(std::string_view text) const {
        double sum = 0;
        size_t count = 0;
        Line line;
        for_lines(text, line, [&](const Line& found) {
            for_runs(found, [&](size_t at) { sum += weights_[at], ++count; });
        });
        return count ? header.bias + sum / static_cast<double>(count) : std::numeric_limits<double>::infinity();
    }

  protected:
    // Lines between START and END, as the language model has them, each number one and the same token; and beside them
    // the endings of the longer words, for what a sentence is made of whatever it is about: `the -ing of`.
    struct Line {
        std::vector<uint64_t> tokens, endings;
    };
    template <class Take>
    static void for_lines(std::string_view text, Line& line, Take take) {
        while (!text.empty()) {
            const size_t stop = std::min(text.find('\n'), text.size());
            line.tokens.assign(1, START), line.endings.assign(1, START);
            walk_tokens(text.substr(0, stop), true, [&](uint64_t hash, Class kind, const char* end) {
                line.tokens.push_back(kind == DIGIT ? NUMBER : hash);
                line.endings.push_back(kind == LATIN ? ending(line.tokens.back(), text.data(), end) : line.tokens.back());
            });
            text.remove_prefix(std::min(stop + 1, text.size()));
            if (line.tokens.size() == 1) continue;
            line.tokens.push_back(END), line.endings.push_back(END);
            take(line);
        }
    }

    // The last three letters of a word of four and more in ASCII; else its own hash.
    static uint64_t ending(uint64_t word, const char* begin, const char* end) {
        uint64_t last = 4;
        for (int n = 1; n <= 4; ++n) {
            const uint32_t letter = end - begin < n ? 0 : static_cast<unsigned char>(end[-n]);
            if (letter >= 0x80 || class_of(letter) != LATIN) return word;
            if (n < 4) last = last << 8 | fold(letter);
        }
        return mix(4, last);
    }

    // The places of the weights of every token, every two, and every two and three endings (Chinese has none: characters).
    template <class Take>
    void for_runs(const Line& line, Take take) const {
        const uint32_t shift = 64 - header.bits;
        const auto& [tokens, endings] = line;
        for (size_t at = 1; at < tokens.size(); ++at) {
            const uint64_t one = mix(3, tokens[at]), two = mix(mix(5, endings[at]), endings[at - 1]);
            take(one >> shift), take(mix(one, tokens[at - 1]) >> shift);
            if (endings[at] != tokens[at] || endings[at - 1] != tokens[at - 1]) take(two >> shift);
            if (at > 1) take(mix(two, endings[at - 2]) >> shift);
        }
    }

    static constexpr uint64_t NUMBER = 13;  // no token's hash is so small in practice
    std::vector<float> weights_;
};

// Stochastic gradient descent with a rate for each weight (AdaGrad; Duchi, Hazan and Singer 2011), in the order in which
// the texts come: the same texts make the same file.
class ClassifierTrainer : public Classifier {
  public:
    explicit ClassifierTrainer(uint32_t bits) {
        if (bits < 8 || bits > 28) throw std::invalid_argument("bits=" + std::to_string(bits) + " is not within 8 to 28");
        std::memcpy(header.magic, CLASSIFIER_MAGIC, sizeof CLASSIFIER_MAGIC);
        header.bits = bits;
        weights_.assign(size_t{1} << bits, 0), seen_.assign(size_t{1} << bits, 0);
    }

    // One pass over two pieces of text, good and bad mixed evenly; either kind weighs as much as the other.
    void learn(std::string_view good, std::string_view bad) {
        const std::vector<Example> kinds[2] = {examples(good, false), examples(bad, false)};
        const size_t count = kinds[0].size() + kinds[1].size();
        size_t next[2] = {0, 0};
        for (size_t at = 0; at < count; ++at) {
            const size_t kind = next[0] * kinds[1].size() > next[1] * kinds[0].size() || next[0] == kinds[0].size();
            const float weight = static_cast<float>(count) / (2.0f * static_cast<float>(kinds[kind].size()));
            step(kinds[kind][next[kind]++], kind == 1, weight);
        }
        header.examples += count, learned_[0] += kinds[0].size(), learned_[1] += kinds[1].size();
    }

    // Scores of the examples of a text that `learn` leaves out, one in twenty.
    std::vector<double> held_out(std::string_view text) const {
        std::vector<double> scores;
        for (const Example& example : examples(text, true)) scores.push_back(log_odds(example));
        return scores;
    }

    void save(const std::string& path, const std::string& language) {
        if (!learned_[0] || !learned_[1])
            throw std::invalid_argument(std::string("the ") + (learned_[0] ? "bad" : "good") +
                                        " text holds too few tokens to learn from; give some thousand words of either kind");
        language.copy(header.language, 3);
        Classifier::save(path);
    }

  private:
    using Example = std::vector<uint32_t>;  // places of weights
    static constexpr size_t LENGTH = 100;  // tokens from which on lines make an example: a short page
    static constexpr float RATE = 0.5f;

    std::vector<Example> examples(std::string_view text, bool held) const {
        std::vector<Example> found(1);
        Line line;
        size_t tokens_in = 0;
        uint64_t hash = 0;
        const auto close = [&] {
            if ((hash % 20 == 0) != held) found.back().clear();
            else if (!found.back().empty()) found.emplace_back();
            tokens_in = 0, hash = 0;
        };
        for_lines(text, line, [&](const Line& made) {
            for_runs(made, [&](size_t at) { found.back().push_back(static_cast<uint32_t>(at)); });
            for (const uint64_t token : made.tokens) hash = mix(hash, token);
            tokens_in += made.tokens.size();
            if (tokens_in >= LENGTH) close();
        });
        close();
        found.pop_back();
        return found;
    }

    double log_odds(const Example& example) const {
        double sum = 0;
        for (const uint32_t at : example) sum += weights_[at];
        return header.bias + sum / static_cast<double>(example.size());
    }

    void step(const Example& example, bool bad, float weight) {
        const double wrong = 1 / (1 + std::exp(-log_odds(example))) - bad;
        const float slope = weight * static_cast<float>(wrong / static_cast<double>(example.size()));
        for (const uint32_t at : example) {
            seen_[at] += slope * slope;
            weights_[at] -= RATE * slope / std::sqrt(seen_[at] + 1e-12f);
        }
        bias_seen_ += weight * weight * static_cast<float>(wrong * wrong);
        header.bias -= RATE * weight * static_cast<float>(wrong) / std::sqrt(bias_seen_ + 1e-12f);
    }

    std::vector<float> seen_;  // of each weight, the sum of its squared slopes
    float bias_seen_ = 0;
    uint64_t learned_[2] = {0, 0};  // examples, good and bad
};

}  // namespace ziya
