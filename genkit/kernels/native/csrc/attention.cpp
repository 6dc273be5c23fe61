// Block-sparse attention and attention over chosen keys, for heads of HEAD_SIZE channels: a plain C interface.
//
// genkit/kernels/native/library.py compiles this file for the processor and the head size at hand.
#include "backward.h"
#include "forward.h"

#if defined(_WIN32)
#define PUBLIC extern "C" __declspec(dllexport)
#else
#define PUBLIC extern "C" __attribute__((visibility("default")))
#endif

PUBLIC int head_size() { return DIM; }
PUBLIC int vector_bytes() { return VECTOR_BYTES; }
PUBLIC int64_t forward_scratch_bytes() { return sizeof(ForwardScratch); }
PUBLIC int64_t backward_scratch_bytes() { return sizeof(BackwardScratch); }
PUBLIC void forward_work(Shared* shared) { work(shared, forward); }
PUBLIC void backward_work(Shared* shared) { work(shared, backward); }
