// The other end of contest.py's pipe: a process that computes one case at a
// time, in turns, when it is told to. One line of JSON asks, one answers.
//
//   {"do": "prepare", "case": {...}, "folder": F}  tensors are raw in F/query,
//                                                  F/key and so on
//       {}, or {"refused": why}
//   {"do": "turn", "seconds": S}   {"seconds": of a call}
//   {"do": "answer", "path": P}    {}; f32 in P, [heads, rows, head_dim]
//   {"do": "forget"}               {}; the tensors are freed
//
// A program may know more of them.
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

  // Throws std::invalid_argument with the reason where it cannot.
  std::function<std::unique_ptr<Prepared>(const Json& of,
                                          const std::string& folder)>
      prepare;
  // Whatever else may be asked.
  std::function<Json(const Json& request)> other;

  // Answers until the pipe ends.
  void Serve();
};

// As many bytes as the file must have.
void ReadTensor(const std::string& path, void* to, size_t bytes);

}  // namespace attnd::bench

#endif  // ATTND_BENCH_PEERS_TURNS_H_
