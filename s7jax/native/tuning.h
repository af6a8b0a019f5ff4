/* Sizes that decide speed and nothing else (specification §8), in one table. */

#ifndef S7_TUNING_H
#define S7_TUNING_H

#define LINE 64     /* bytes of a cache line */
#define FEW 8       /* most tokens whose products pass over the weights where they lie */
#define PAIR 4      /* rows of a matrix that up to half as many take at a time: two pairs */
#define GROUP 16    /* and that more of them take */
#define AHEAD 16    /* rows ahead of them that are asked for (§8: two tiles) */
#define SPAN 2048   /* most columns of them: sums of 8 KiB a token */
#define PART 64     /* fewest rows of a matrix that are worth a thread */
#define RUN 1024    /* products that are added in int32: 127 · 16,256 · 1,024 < 2^31 */
#define PANEL 256   /* rows of a matrix widened at a time for many tokens: 16 KiB, in the cache */
#define BLOCK 256   /* tokens that go through the layers together */
#define QUERIES 32  /* of one row and head whose scores are computed together */
#define SCORES 65536 /* of one piece of attention: 256 KiB of scores */
#define SPINS 4000  /* looks at a counter before a thread goes to sleep */

#endif
