// Implements the other end of the pipe of contest.py. This process computes one
// case at a time, in turns, when it is told to. Each request and each answer is
// one line of JSON:
//
//   {"do": "prepare", "case": {...}, "folder": F}  {}, or {"refused": why}
//   {"do": "turn", "seconds": S}                   {"seconds": time of a call}
//   {"do": "answer", "path": P}                    {}
//   {"do": "forget"}                               {}
//
// "prepare" reads raw tensors from F/query, F/key and so on. "turn" runs the
// case for S seconds. "answer" writes f32 numbers to P, with the shape [heads,
// rows, head_dim]. "forget" frees the tensors. A program can support other
// requests.
#ifndef ATTND_BENCH_PEERS_TURNS_H_
#define ATTND_BENCH_PEERS_TURNS_H_

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace attnd::bench {

// A case that is ready to run.
class Prepared {
 public:
  virtual ~Prepared() = default;
  virtual void Call() = 0;
  virtual std::vector<float> Answer() = 0;
};

struct Turns {
  using Json = nlohmann::json;

  // Throws std::invalid_argument with a reason if it cannot compute the case.
  std::function<std::unique_ptr<Prepared>(const Json& of,
                                          const std::string& folder)>
      prepare;
  // Answers other requests.
  std::function<Json(const Json& request)> other;

  // Answers requests until the pipe is closed.
  void Serve();
};

// Throws if the file does not have `bytes` bytes.
void ReadTensor(const std::string& path, void* to, size_t bytes);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_PEERS_TURNS_H_
