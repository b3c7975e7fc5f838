// Computes attention of a real transformer layer on an attnd server, compares
// it with float64, times calls, and shows the error of a wrong request.
//
//     attnd_example (HOST:PORT | unix:PATH) FOLDER
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/attention_client.h"

namespace {

using attnd::client::AttentionClient;

// PyTorch's float32 kernel has this error on the same data.
constexpr double kAllowedError = 1.3e-6;
constexpr int kTimedCalls = 500;

// A little-endian, row-major array of a .npy file of version 1.
template <typename T>
struct Array {
  std::vector<int64_t> shape;
  std::vector<T> elements;

  explicit Array(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    const std::string bytes(std::istreambuf_iterator<char>(file), {});
    const std::string key = "'shape': (";
    const auto type = "'descr': '<f" + std::to_string(sizeof(T)) +
                      "', 'fortran_order': False, " + key;
    const auto found = bytes.find(type);
    if (found == std::string::npos) {
      throw std::runtime_error(path.string() + ": no array with " + type);
    }
    // The text is "12, 331, 32), }", spaces and a line break. Elements follow.
    const char* text = bytes.c_str() + found + type.size();
    for (char* end; *text != ')'; text = *end == ',' ? end + 1 : end) {
      shape.push_back(std::strtoll(text, &end, 10));
    }
    const size_t start = bytes.find('\n', found) + 1;
    elements.resize((bytes.size() - start) / sizeof(T));
    std::memcpy(elements.data(), &bytes[start], elements.size() * sizeof(T));
  }
};

// Returns the largest difference: infinity for a NaN or another size.
double WorstError(std::span<const float> got,
                  std::span<const double> expected) {
  if (got.size() != expected.size()) return HUGE_VAL;
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(got[i] - expected[i]);
    worst = std::isnan(error) ? HUGE_VAL : std::max(worst, error);
  }
  return worst;
}

absl::StatusOr<double> RealAttention(const AttentionClient& client,
                                     const std::filesystem::path& folder) {
  const Array<float> query(folder / "query.npy");
  const Array<float> key(folder / "key.npy");
  const Array<float> value(folder / "value.npy");
  const Array<double> expected(folder / "expected.npy");
  std::vector<float> output(expected.elements.size());
  const absl::Time start = absl::Now();
  const auto reply = client.Attention({.query = {query.elements, query.shape},
                                       .key = {key.elements, key.shape},
                                       .value = {value.elements, value.shape}},
                                      {.output = output});
  if (!reply.ok()) return reply.status();
  const auto& stats = reply->stats;
  std::cout << "attention     " << output.size() << " numbers by " << stats.isa
            << " " << stats.kernel << " on " << stats.threads
            << " thread(s): " << stats.compute_time << " of "
            << absl::Now() - start << "\n";
  return WorstError(output, expected.elements);
}

// Times a call of one query, one key and one dimension: mostly transport.
absl::StatusOr<absl::Duration> SmallestCall(const AttentionClient& client) {
  const std::vector<float> one(1);
  std::vector<float> output(1);
  std::vector<absl::Duration> times;
  for (int i = 0; i < kTimedCalls; ++i) {
    const absl::Time start = absl::Now();
    const auto reply = client.Attention(
        {.query = {one, {1, 1}}, .key = {one, {1, 1}}, .value = {one, {1, 1}}},
        {.output = output});
    if (!reply.ok()) return reply.status();
    times.push_back(absl::Now() - start);
  }
  std::ranges::sort(times);
  return times[kTimedCalls / 2];
}

// The key has another head_dim than the query. The error names the field.
void RefusedCall(const AttentionClient& client) {
  const std::vector<float> two(2);
  const std::vector<float> three(3);
  std::vector<float> output(2);
  const auto reply = client.Attention(
      {.query = {two, {1, 2}}, .key = {three, {1, 3}}, .value = {two, {1, 2}}},
      {.output = output});
  const auto details = attnd::client::DetailsOf(reply.status());
  for (const auto& [field, description] : details.field_violations) {
    std::cout << "refused       "
              << absl::StatusCodeToString(reply.status().code()) << ", "
              << details.reason << " in " << field << "\n              "
              << description << "\n";
  }
}

// Returns whether the answer is as exact as it should be.
absl::StatusOr<bool> Run(const AttentionClient& client, const char* folder) {
  const absl::StatusOr<double> worst = RealAttention(client, folder);
  if (!worst.ok()) return worst.status();
  std::printf("worst error   %.3e, allowed %.1e\n", *worst, kAllowedError);
  const absl::StatusOr<absl::Duration> p50 = SmallestCall(client);
  if (!p50.ok()) return p50.status();
  std::printf("smallest call p50 %.1f us of %d\n",
              absl::ToDoubleMicroseconds(*p50), kTimedCalls);
  RefusedCall(client);
  return *worst <= kAllowedError;
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) throw std::runtime_error("expected ADDRESS FOLDER");
  const auto exact = Run(AttentionClient({.target = argv[1]}), argv[2]);
  if (!exact.ok()) std::cerr << exact.status() << "\n";
  return exact.ok() && *exact ? 0 : 1;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
