// Runs a fuzz target on its seeds, or on the files that are named, such as a
// finding of libFuzzer. With --write=DIR, it writes the seeds to DIR instead.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "tests/fuzz/fuzz_target.h"

namespace {

std::string Contents(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::cerr << "cannot read " << path << "\n";
    std::exit(2);
  }
  return {std::istreambuf_iterator<char>(file), {}};
}

int WriteTo(const std::string& directory,
            const std::vector<std::string>& inputs) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    const std::string path = directory + "/seed-" + std::to_string(i);
    if (!(std::ofstream(path, std::ios::binary) << inputs[i]).flush()) {
      std::cerr << "cannot write " << path << "\n";
      return 2;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> inputs;
  absl::string_view directory = argc == 2 ? argv[1] : "";
  if (absl::ConsumePrefix(&directory, "--write=")) {
    return WriteTo(std::string(directory), attnd::fuzz::Seeds());
  }
  for (int i = 1; i < argc; ++i) inputs.push_back(Contents(argv[i]));
  if (inputs.empty()) inputs = attnd::fuzz::Seeds();
  for (const std::string& input : inputs) {
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()),
                           input.size());
  }
  std::cout << inputs.size() << " inputs without a finding\n";
}
