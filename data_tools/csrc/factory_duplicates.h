// Finding a page again: a Bloom filter for exact repeats. Near ones: factory_near.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "factory_text.h"

namespace ziya {

class File {  // closes itself; every read and write is checked
  public:
    File(const std::string& path, const char* mode) : path_(path), file_(std::fopen(path.c_str(), mode)) {
        if (!file_) throw FileError(path + " cannot be opened");
    }
    ~File() { if (file_) std::fclose(file_); }
    File(const File&) = delete;
    void write(const void* data, size_t size) {
        if (size && std::fwrite(data, 1, size, file_) != size) throw FileError(path_ + " cannot be written");
    }
    void read(void* data, size_t size) {
        if (size && std::fread(data, 1, size, file_) != size)
            throw std::invalid_argument(path_ + " is cut short; build the index again");
    }
    void skip(size_t size) {
        if (std::fseek(file_, static_cast<long>(size), SEEK_CUR)) throw FileError(path_ + " cannot be read");
    }
    void expect(const char (&magic)[8]) {
        char found[8];
        read(found, 8);
        if (std::memcmp(found, magic, 8)) throw std::invalid_argument(path_ + " is not the index file that was expected");
    }
    void close() {
        const int failed = std::fclose(file_);
        file_ = nullptr;
        if (failed) throw FileError(path_ + " cannot be written");
    }

  private:
    std::string path_;
    std::FILE* file_;
};

// Bits m = -n ln p / ln(2)^2 and k = m/n ln 2 probes for n keys at a false-positive rate p (Bloom 1970). The bits may be
// cut into parts: each answers for the probes that fall into it, and what all parts have seen the whole filter has.
class Bloom {
  public:
    Bloom(uint64_t capacity, double rate, uint64_t part, uint64_t parts) {
        if (!capacity || !(rate > 0 && rate < 1))
            throw std::invalid_argument("a Bloom filter needs capacity >= 1 and a rate within 0 and 1");
        const double bits = -static_cast<double>(capacity) * std::log(rate) / (std::log(2.0) * std::log(2.0));
        total_ = static_cast<uint64_t>(bits / 64) + 1;
        probes_ = static_cast<uint64_t>(std::max(1.0, std::round(-std::log2(rate))));
        take(part, parts);
    }

    bool test_and_add(uint64_t key) { return visit<true>(key); }
    bool test(uint64_t key) { return visit<false>(key); }
    uint64_t probes() const { return probes_; }
    uint64_t total() const { return total_; }
    const std::vector<uint64_t>& words() const { return words_; }

    // The file holds all words, behind three numbers: probes, keys added, words.
    static Bloom load(const std::string& path, uint64_t part, uint64_t parts) {
        File file(path, "rb");
        uint64_t numbers[3];
        file.expect(MAGIC), file.read(numbers, sizeof numbers);
        Bloom bloom(1, 0.5, 0, 1);
        bloom.probes_ = numbers[0], bloom.total_ = numbers[2];
        bloom.take(part, parts);
        file.skip(bloom.first_ * 8), file.read(bloom.words_.data(), bloom.words_.size() * 8);
        return bloom;
    }
    static constexpr char MAGIC[8] = {'Z', 'I', 'Y', 'A', 'B', 'F', '1', 0};

  private:
    void take(uint64_t part, uint64_t parts) {
        if (part >= parts) throw std::invalid_argument("a part must be below the number of parts");
        first_ = part * total_ / parts;
        words_.assign((part + 1) * total_ / parts - first_, 0);
    }
    template <bool ADD>
    bool visit(uint64_t key) {
        // Two hashes make all probes (Kirsch and Mitzenmacher 2006); the product's high half maps them to the range.
        uint64_t hash = mix(21, key);
        const uint64_t step = mix(22, key) | 1;
        bool seen = true;
        for (uint64_t probe = 0; probe < probes_; ++probe, hash += step) {
            const uint64_t bit = static_cast<uint64_t>((static_cast<unsigned __int128>(hash) * (total_ * 64)) >> 64);
            const uint64_t at = (bit >> 6) - first_;  // wraps round below the first
            if (at >= words_.size()) continue;
            const uint64_t flag = 1ull << (bit & 63);
            seen = seen && (words_[at] & flag);
            if (ADD) words_[at] |= flag;
        }
        return seen;
    }
    std::vector<uint64_t> words_;
    uint64_t probes_ = 1, total_ = 0, first_ = 0;
};

}  // namespace ziya
