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

// Bits m = -n ln p / ln(2)^2 and k = m/n ln 2 probes for n keys at a false-positive rate p (Bloom 1970).
class Bloom {
  public:
    Bloom(uint64_t capacity, double rate) {
        if (!capacity || !(rate > 0 && rate < 1))
            throw std::invalid_argument("a Bloom filter needs capacity >= 1 and a rate within 0 and 1");
        const double bits = -static_cast<double>(capacity) * std::log(rate) / (std::log(2.0) * std::log(2.0));
        words_.assign(static_cast<size_t>(bits / 64) + 1, 0);
        probes_ = static_cast<uint64_t>(std::max(1.0, std::round(-std::log2(rate))));
    }

    bool test_and_add(uint64_t key) { return visit(key, true); }
    bool test(uint64_t key) { return visit(key, false); }
    uint64_t added() const { return added_; }
    size_t bytes() const { return words_.size() * 8; }

    void save(const std::string& path) const {
        File file(path, "wb");
        const uint64_t numbers[] = {probes_, added_, words_.size()};
        file.write(MAGIC_BLOOM, 8), file.write(numbers, sizeof numbers), file.write(words_.data(), bytes());
        file.close();
    }
    static Bloom load(const std::string& path) {
        File file(path, "rb");
        uint64_t numbers[3];
        file.expect(MAGIC_BLOOM), file.read(numbers, sizeof numbers);
        Bloom bloom(1, 0.5);
        bloom.probes_ = numbers[0], bloom.added_ = numbers[1];
        bloom.words_.resize(numbers[2]);
        file.read(bloom.words_.data(), bloom.bytes());
        return bloom;
    }

  private:
    bool visit(uint64_t key, bool add) {
        // Two hashes make all probes (Kirsch and Mitzenmacher 2006); the product's high half maps them to the range.
        uint64_t hash = mix(21, key);
        const uint64_t step = mix(22, key) | 1;
        bool seen = true;
        for (uint64_t probe = 0; probe < probes_; ++probe, hash += step) {
            const uint64_t bit = static_cast<uint64_t>((static_cast<unsigned __int128>(hash) * (words_.size() * 64)) >> 64);
            const uint64_t flag = 1ull << (bit & 63);
            seen = seen && (words_[bit >> 6] & flag);
            if (add) words_[bit >> 6] |= flag;
        }
        if (add && !seen) ++added_;
        return seen;
    }
    static constexpr char MAGIC_BLOOM[8] = {'Z', 'I', 'Y', 'A', 'B', 'F', '1', 0};
    std::vector<uint64_t> words_;
    uint64_t probes_ = 1, added_ = 0;
};

}  // namespace ziya
