// Inputs that are still on their way: a job's workers bring them to where its
// buffers say they are, part by part, right before they read them. Knows bytes,
// not what they mean.
#ifndef ATTND_CORE_INPUT_SOURCE_H_
#define ATTND_CORE_INPUT_SOURCE_H_

#include <cstdint>

namespace attnd {

// Asked for each part once. Its functions may run at once in several threads,
// and must not throw, block or allocate.
class InputSource {
 public:
  virtual ~InputSource() = default;

  // Pieces that all inputs are cut into; those of keys and values come last.
  virtual int64_t pieces() const = 0;
  virtual void LoadPiece(int64_t piece) = 0;

  // How many come before those of keys and values. All of them where a key or
  // value is also another input; then the functions below are not called.
  virtual int64_t pieces_before_keys() const = 0;
  // Instead of their pieces: some bytes of the keys, or of the values.
  virtual void LoadKeys(int64_t offset_bytes, int64_t size_bytes) = 0;
  virtual void LoadValues(int64_t offset_bytes, int64_t size_bytes) = 0;
};

}  // namespace attnd

#endif  // ATTND_CORE_INPUT_SOURCE_H_
