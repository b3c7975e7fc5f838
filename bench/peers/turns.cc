#include "bench/peers/turns.h"

#include <chrono>
#include <fstream>
#include <iostream>
#include <stdexcept>

namespace attnd::bench {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

double Timed(Prepared& prepared) {
  const Clock::time_point before = Clock::now();
  prepared.Call();
  return Seconds(Clock::now() - before).count();
}

// The first call is not counted if it is short, because the turn before has
// left other data in the caches. turns.py does the same.
double Turn(Prepared& prepared, double seconds) {
  const double first = Timed(prepared);
  if (first > seconds / 2) return first;
  double spent = 0;
  int calls = 0;
  for (; spent < seconds; ++calls) spent += Timed(prepared);
  return spent / calls;
}

}  // namespace

void Turns::Serve() {
  std::unique_ptr<Prepared> prepared;
  for (std::string line; std::getline(std::cin, line);) {
    const Json request = Json::parse(line);
    const std::string what = request["do"];
    Json answer = Json::object();
    if (what == "prepare") {
      prepared.reset();
      try {
        prepared = prepare(request["case"], request["folder"]);
        prepared->Call();
      } catch (const std::invalid_argument& refusal) {
        answer["refused"] = refusal.what();
      }
    } else if (what == "turn") {
      answer["seconds"] = Turn(*prepared, request["seconds"]);
    } else if (what == "answer") {
      const std::vector<float> values = prepared->Answer();
      std::ofstream file(request["path"].get<std::string>(), std::ios::binary);
      file.write(reinterpret_cast<const char*>(values.data()),
                 static_cast<std::streamsize>(values.size() * sizeof(float)));
      if (!file.flush()) throw std::runtime_error("cannot write the answer");
    } else if (what == "forget") {
      prepared.reset();
    } else {
      answer = other ? other(request) : Json();
    }
    std::cout << answer.dump() << "\n" << std::flush;
  }
}

void ReadTensor(const std::string& path, void* to, size_t bytes) {
  std::ifstream file(path, std::ios::binary);
  file.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
  if (!file || file.peek() != std::ifstream::traits_type::eof()) {
    throw std::runtime_error(path + ": expected " + std::to_string(bytes) +
                             " bytes");
  }
}

}  // namespace attnd::bench
